"""Run, shape and vet open-weight gpt-oss models on your own machine."""
