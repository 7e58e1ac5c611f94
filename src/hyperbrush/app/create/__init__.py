"""Creating pictures: the page, its routes and the job that draws."""
