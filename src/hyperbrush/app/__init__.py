"""The web app: its REST API, its pages, the job queue and the worker that outlives them.

Way of a job: page or API → `jobs` (a folder and a place in the queue) → `worker` (a process of its own) → `work` (one
function a kind) → progress in the job's or the run's folder → `watch` → API events and pages.
"""
