"""One reader per form of data set: raw rows in the layouts that people have, to rows that rendering
understands."""
