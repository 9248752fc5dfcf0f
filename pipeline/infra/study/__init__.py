"""A study: what is trained (`plan`), how (`cell`, `runner`), and what comes out (`results`, `page`)."""
