{{/* The three kinds of groups of the Ray cluster. */}}

{{/* The head: Ray's control plane and Serve's controller, neither gateway nor scorer. Takes the root. */}}
{{- define "preceptor.head" -}}
{{- $group := .Values.head -}}
{{- $arguments := dict "root" . "group" $group "component" "head" -}}
rayStartParams:
  {{- $parameters := dict "num-cpus" "0" "num-gpus" "0" "dashboard-host" "0.0.0.0" }}
  {{- toYaml (merge (dict) ($group.rayStartParams | default dict) $parameters) | nindent 2 }}
template:
  metadata:
    labels:
      {{- include "preceptor.podLabels" (dict "root" . "component" "head" "extra" $group.podLabels) | nindent 6 }}
    {{- with $group.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    # Only the autoscaler talks to Kubernetes, as the account that KubeRay makes for it.
    automountServiceAccountToken: {{ eq (include "preceptor.isAutoscaling" .) "true" }}
    {{- if not (include "preceptor.isAutoscaling" .) }}
    serviceAccountName: {{ include "preceptor.serviceAccountName" . }}
    {{- end }}
    terminationGracePeriodSeconds: {{ add (include "preceptor.gatewayGraceSeconds" .) 30 }}
    {{- include "preceptor.podSpec" $arguments | nindent 4 }}
    containers:
      - name: ray-head
        image: {{ include "preceptor.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        ports:
          - name: gcs-server
            containerPort: 6379
          - name: dashboard
            containerPort: 8265
          - name: metrics
            containerPort: 8080
          # Nobody listens; KubeRay makes no Service for Serve without it, and waits for one.
          - name: serve
            containerPort: 8000
        {{- include "preceptor.env" $arguments | nindent 8 }}
        lifecycle:
          # Where the whole cluster goes, gateways need Ray to drain: the head leaves after them.
          preStop:
            exec:
              command: [/bin/sleep, {{ include "preceptor.gatewayGraceSeconds" . | quote }}]
        resources:
          {{- include "preceptor.resources" $group | nindent 10 }}
        securityContext:
          {{- include "preceptor.containerSecurityContext" . | nindent 10 }}
        volumeMounts:
          {{- include "preceptor.scratchMounts" . | nindent 10 }}
          {{- with .Values.extraVolumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "preceptor.scratchVolumes" $group | nindent 6 }}
      {{- with .Values.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{/* Pods with one gateway each; each advertises what one gateway takes, and no CPUs, so that nothing else lands there. */}}
{{- define "preceptor.gatewayGroup" -}}
{{- $group := .Values.gateway -}}
{{- $resources := printf "'%s'" (toJson (dig "gateway" "resources" dict .Values.config)) -}}
{{- $parameters := dict "num-cpus" "0" "num-gpus" "0" "resources" $resources -}}
groupName: gateway
replicas: {{ include "preceptor.config.gateways" . }}
minReplicas: {{ include "preceptor.config.gateways" . }}
maxReplicas: {{ include "preceptor.config.gateways" . }}
{{ include "preceptor.worker" (dict "root" . "group" $group "component" "gateway" "parameters" $parameters "grace" (include "preceptor.gatewayGraceSeconds" .)) }}
{{- end -}}

{{/* One group of scorers. Takes root, name, group. */}}
{{- define "preceptor.scorerGroup" -}}
{{- $group := .group -}}
{{- $parameters := dict "num-cpus" ($group.cpus | toString) "num-gpus" ($group.gpus | default 0 | toString) -}}
{{- with $group.rayResources -}}{{- $_ := set $parameters "resources" (printf "'%s'" (toJson .)) -}}{{- end -}}
{{- $isAutoscaling := include "preceptor.isAutoscaling" .root -}}
{{- $replicas := include "preceptor.groupReplicas" $group | int -}}
groupName: {{ .name }}
{{- if $isAutoscaling }}
replicas: {{ $group.minReplicas | default 0 | int }}
minReplicas: {{ $group.minReplicas | default 0 | int }}
maxReplicas: {{ $group.maxReplicas | int }}
{{- with $group.idleTimeoutSeconds }}
idleTimeoutSeconds: {{ . | int }}
{{- end }}
{{- else }}
replicas: {{ $replicas }}
minReplicas: {{ $replicas }}
maxReplicas: {{ $replicas }}
{{- end }}
{{ include "preceptor.worker" (dict "root" .root "group" $group "component" "scorer" "parameters" $parameters "grace" (include "preceptor.scorerGraceSeconds" .root)) }}
{{- end -}}
