"""How many directions the token representations of a language model use."""
