"""Maps with a class, a number or a vector for each pixel, as labels of CLIPTeX and ground truth of
probes have them: their files, their geometry, their scores, their pictures."""
