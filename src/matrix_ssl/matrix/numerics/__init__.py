"""How the functions of ``matrix_ssl.matrix`` compute: checks, precision, scaling, products and derivatives."""
