"""The kernels that `adjoint.kernels` offers, one module for each family: checks, then the side of the array."""
