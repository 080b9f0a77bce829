"""The Stackelberg game around the optimizers: a leader, the body, and a follower, the head, of one loss."""
