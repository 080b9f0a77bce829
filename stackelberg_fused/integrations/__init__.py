"""Callbacks for other people's trainers; each module needs its library, and nothing else here imports it."""
