"""What every numbered script runs in: typed configuration, the command line, stages and their manifests,
several processes, access tokens, user code, and the one table of the pipeline. It knows no method and no
data set."""
