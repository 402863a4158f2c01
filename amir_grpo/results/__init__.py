"""Tables and figures for readers; made from tables, never from models."""
