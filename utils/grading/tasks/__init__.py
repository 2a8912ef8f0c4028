"""All that a form of data set knows about its answers, one file a form. Nobody else asks which form a data
set has."""
