"""The update in Triton. Installed and imported only as `stackelberg_fused.triton_kernels`."""
