"""The Ray that a job runs on: started or joined, what it has and may get, what its nodes see."""
