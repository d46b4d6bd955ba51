# A runtime with one artifact baked in: nothing is mounted or downloaded when it runs. A tampered or unproven artifact
# fails the build, and so does one that this runtime's engine does not load.
FROM runtime

COPY --from=artifact / /artifact
RUN yap-runtime check /artifact --lane "$YAP_LANE"
