"""Recovery: giving the accuracy back, in closed form or by fine-tuning."""
