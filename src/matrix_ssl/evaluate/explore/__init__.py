"""What is in a folder of images, from their features: neighbours, duplicates, outliers, clusters, labels, subsets."""
