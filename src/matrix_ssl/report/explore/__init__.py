"""The page of ``matrix-ssl explore``: an interactive map of a folder of images. Uses no torch."""
