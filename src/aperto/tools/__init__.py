"""Tools that the model may call: they take a call and answer it with messages."""
