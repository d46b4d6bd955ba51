# A runtime with one artifact baked in: nothing is mounted or downloaded when it runs. A tampered or unproven artifact
# fails the build.
FROM runtime

COPY --from=artifact / /artifact
RUN ["yap-runtime", "check", "/artifact"]
