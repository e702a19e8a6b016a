"""What a browser does; a package, so that one browser serves all modules of the folder."""
