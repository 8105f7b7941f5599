"""The engine: layers, losses, optimizers, and the backends that compute them."""
