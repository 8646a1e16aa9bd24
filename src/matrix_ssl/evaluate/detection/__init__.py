"""Detection and instance segmentation as a transfer test: Mask R-CNN on an encoder, all layers trained, COCO's AP."""
