"""What diffusion makes of a damaged guide, against resizing and super-resolution: the second claim of Figure 5."""
