"""From an image file to pixels: opening, decoding and cropping; imports no dataset."""
