#!/bin/sh
# Makes the image octet-base:bookworm from Debian's packages, for machines that reach no registry: as root, with
# debootstrap installed. Then: docker build --build-arg BASE=octet-base:bookworm -f docker/Dockerfile -t octet .
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder"
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/*
tar -C "$folder" -c . | docker import - octet-base:bookworm
