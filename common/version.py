"""The application's version: of the installation and of both images."""

VERSION = "0.1.0"
