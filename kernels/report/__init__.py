"""`python -m adjoint.kernels --report`: what the CUDA kernels would cost a GPU, counted and calculated without one."""
