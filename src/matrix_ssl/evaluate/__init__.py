"""How good a representation is: kNN, linear and low-shot protocols on feature matrices, and images of the space."""
