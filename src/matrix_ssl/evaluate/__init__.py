"""How good a representation is: kNN, linear and low-shot protocols on feature matrices, and pictures of the space."""
