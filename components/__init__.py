"""The page: one panel a file. It never imports torch, transformers or duckdb."""
