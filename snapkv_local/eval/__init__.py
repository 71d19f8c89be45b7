"""What compression costs in quality: cases, policies applied after one prefill, scores."""
