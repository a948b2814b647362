{{/* What gateways and scorers share. Takes root, group, component, parameters of `ray start`, grace in seconds. */}}
{{- define "preceptor.worker" -}}
{{- $isGateway := eq .component "gateway" -}}
rayStartParams:
  {{- toYaml (merge (dict) (.group.rayStartParams | default dict) .parameters) | nindent 2 }}
template:
  metadata:
    labels:
      {{- include "preceptor.podLabels" (dict "root" .root "component" .component "extra" .group.podLabels) | nindent 6 }}
    {{- with .group.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    automountServiceAccountToken: false
    serviceAccountName: {{ include "preceptor.serviceAccountName" .root }}
    terminationGracePeriodSeconds: {{ .grace }}
    {{- include "preceptor.podSpec" . | nindent 4 }}
    containers:
      - name: ray-worker
        image: {{ include "preceptor.image" .root }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        ports:
          {{- if $isGateway }}
          - name: grpc
            containerPort: {{ include "preceptor.config.gatewayPort" .root }}
          - name: gateway-metrics
            containerPort: {{ include "preceptor.config.metricsPort" .root }}
          {{- end }}
          - name: metrics
            containerPort: 8080
        {{- include "preceptor.env" . | nindent 8 }}
        {{- with include "preceptor.envFrom" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        lifecycle:
          # Services forget the pod meanwhile; then Ray gets its SIGTERM, and drains.
          preStop:
            exec:
              command: [/bin/sleep, "5"]
        {{- include (printf "preceptor.%sProbes" .component) .root | nindent 8 }}
        resources:
          {{- include "preceptor.resources" .group | nindent 10 }}
        securityContext:
          {{- include "preceptor.containerSecurityContext" .root | nindent 10 }}
        volumeMounts:
          {{- include "preceptor.scratchMounts" .root | nindent 10 }}
          {{- with include "preceptor.storeMounts" .root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- if $isGateway }}
          {{- with include "preceptor.credentialMounts" .root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- with include "preceptor.tableMounts" .root | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- end }}
          {{- with .root.Values.extraVolumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "preceptor.scratchVolumes" .group | nindent 6 }}
      {{- with include "preceptor.storeVolumes" .root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- if $isGateway }}
      {{- with include "preceptor.credentialVolumes" .root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "preceptor.tableVolumes" .root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- end }}
      {{- with .root.Values.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}
