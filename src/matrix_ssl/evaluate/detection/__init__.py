"""Detection and instance segmentation, a transfer test: Mask R-CNN on an encoder, all layers trained, COCO's AP."""
