# A runtime with one artifact baked in: nothing is mounted or downloaded when it runs. A tampered or unproven artifact
# fails the build.
FROM runtime

COPY --from=artifact / /artifact
RUN ["python", "-c", "from pathlib import Path; from runtime import artifact, verify; folder = Path('/artifact'); metadata = artifact.read(folder); artifact.verify_files(folder, metadata); verify.check_validation(metadata)"]
