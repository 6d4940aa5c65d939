"""The parts of fine-tuning: augmentation, schedule, loss, checkpoints, several processes."""
