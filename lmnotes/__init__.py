"A notebook lab where small language models are changed, trained and compared truthfully"
__version__ = "0.1.0"
