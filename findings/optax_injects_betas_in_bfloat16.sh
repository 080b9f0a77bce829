#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2: `inject_hyperparams(optax.adamw)` on bfloat16 weights makes b2 = 0.999 a 1, and every update NaN.
#
# Guess before running: the wrapper makes hyperparameters part of the state, so that they can be changed between steps, and is
# otherwise the optimizer that it wraps; hyperparameters are float32 scalars, whatever the weights are.
# Seen: without `hyperparam_dtype` they are stored in the widest dtype among the weights. In bfloat16 0.999 is 1, so that the
# second moment stays zero and its bias correction 1 - b2^t is zero too: 0 / 0 from the first step on. One float32 weight
# among them (a norm's scale) cures it for all. Values that survive are others: 0.99 is 0.98828, 0.995 is
# 0.99609, so averages reach over 85 and 256 steps instead of 100 and 200, and a schedule's rates have 8 bits. Without
# the wrapper, and with hyperparam_dtype=jnp.float32, updates are finite.
#
# Who is hit: pure bfloat16 training with rates that are read or changed in the state. The docstring says what the argument does when
# it is given, and not what happens without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 2>pip.log || {
    cat pip.log
    exit 2
}
cat >inject.py <<'CODE'
import jax.numpy as jnp
import optax


def describe(make, params, **settings):
    """The hyperparameters that the state holds, and whether ten updates with constant gradients are finite."""
    optimizer = make(learning_rate=1e-3, **settings)
    state = optimizer.init(params)
    kept = getattr(state, "hyperparams", {})
    grads = {name: jnp.full_like(param, 0.1) for name, param in params.items()}
    finite = True
    for _ in range(10):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        finite = finite and all(bool(jnp.isfinite(param).all()) for param in params.values())
    b2 = f"b2 is {float(kept['b2']):.5f} in {kept['b2'].dtype}, " if kept else ""
    return f"{b2}{'finite' if finite else 'NaN'}"


low = {"weight": jnp.ones(4, jnp.bfloat16)}
mixed = low | {"scale": jnp.ones(4, jnp.float32)}
injected = optax.inject_hyperparams(optax.adamw)
print("plain:", describe(optax.adamw, low))
print("injected:", describe(injected, low))
print("injected, b2=0.99:", describe(injected, low, b2=0.99))
print("injected, b2=0.995:", describe(injected, low, b2=0.995))
print("injected, a float32 weight too:", describe(injected, mixed))
print("injected, float32:", describe(optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32), low))
CODE
JAX_PLATFORMS=cpu env/bin/python inject.py 2>log | tee found || { cat log; exit 2; }
cat >expected <<'TEXT'
plain: finite
injected: b2 is 1.00000 in bfloat16, NaN
injected, b2=0.99: b2 is 0.98828 in bfloat16, finite
injected, b2=0.995: b2 is 0.99609 in bfloat16, finite
injected, a float32 weight too: b2 is 0.99900 in float32, finite
injected, float32: b2 is 0.99900 in float32, finite
TEXT
cmp -s expected found || { echo "CHANGED: expected"; cat expected; exit 1; }
echo "as found: hyperparameters take the precision of the weights"
