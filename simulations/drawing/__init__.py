"""How figures are drawn: matplotlib's SVG in the colours of the page that holds it."""
