"""Random views of images, on the CPU and on a GPU."""
