"""Moving experts' bytes: lanes that read, stages they land through, and what asks for them."""
