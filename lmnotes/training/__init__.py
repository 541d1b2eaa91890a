"One loop, driven by fastai; everything that cuts across it is a callback with one job."
