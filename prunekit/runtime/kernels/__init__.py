"""The packed engine's operators: attention and linear layers, in torch, C++ and Triton."""
