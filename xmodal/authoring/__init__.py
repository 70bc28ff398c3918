"""For plugin authors: write a new package, check a package, and describe installed components."""
