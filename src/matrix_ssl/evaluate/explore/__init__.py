"""Explores a folder of images by their features: neighbours, duplicates, outliers, clusters, labels, subsets."""
