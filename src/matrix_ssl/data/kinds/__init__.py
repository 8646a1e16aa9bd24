"""The kinds of datasets, a file each; ``data.sources`` recognises and opens them."""
