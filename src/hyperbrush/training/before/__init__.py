"""What is looked at before a training: pictures, captions, memory, rates."""
