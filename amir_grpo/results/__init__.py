"""What a reader sees: tables, figures and the report; made from tables, never from models."""
