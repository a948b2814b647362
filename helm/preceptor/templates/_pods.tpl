{{/* What the pods of all groups share. */}}

{{- define "preceptor.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.securityContext.runAsUser | int }}
runAsGroup: {{ .Values.securityContext.runAsGroup | int }}
fsGroup: {{ .Values.securityContext.fsGroup | int }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "preceptor.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Scheduling and identity. Takes root, group, component. */}}
{{- define "preceptor.podSpec" -}}
{{- $values := .root.Values -}}
enableServiceLinks: false
securityContext:
  {{- include "preceptor.podSecurityContext" .root | nindent 2 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.priorityClassName | default $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .group.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if ne .component "head" }}
topologySpreadConstraints:
  {{- with .group.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "preceptor.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Requests equal limits, so that what Ray hands out is there. Takes the group. */}}
{{- define "preceptor.resources" -}}
{{- $amounts := dict "cpu" (.cpus | toString) "memory" .memory -}}
{{- if .ephemeralStorage -}}{{- $_ := set $amounts "ephemeral-storage" .ephemeralStorage -}}{{- end -}}
{{- if .gpus -}}{{- $_ := set $amounts (.gpuResource | default "nvidia.com/gpu") (.gpus | toString) -}}{{- end -}}
{{- toYaml (mergeOverwrite (dict "requests" $amounts "limits" (deepCopy $amounts)) (.resources | default dict)) -}}
{{- end -}}

{{/*
Environment. KubeRay adds its own, with Ray's token. On SIGTERM Ray drains its node for so many seconds: Serve starts
replicas elsewhere where there is room, and stops those here in time for their own drain to end. Replicas log to the
standard error of the container's first process, which `kubectl logs` shows. Takes root, group, and the grace period of
a worker.
*/}}
{{- define "preceptor.env" -}}
env:
  - name: HOME
    value: /var/tmp
  - name: TMPDIR
    value: /var/tmp
  - name: RAY_TMPDIR
    value: /var/tmp
  - name: RAY_USAGE_STATS_ENABLED
    value: "0"
  - name: PRECEPTOR_LOG_TO
    value: /proc/1/fd/2
  - name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
    value: {{ ternary (sub (.grace | default 0 | int) 10) 0 (hasKey . "grace") | quote }}
  {{- with concat .root.Values.extraEnv (.group.extraEnv | default list) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Secrets as environment, where the service itself runs. Takes root, group. */}}
{{- define "preceptor.envFrom" -}}
{{- $sources := concat .root.Values.extraEnvFrom (.group.extraEnvFrom | default list) -}}
{{- with .root.Values.objectStore.credentialsSecret -}}
{{- $sources = prepend $sources (dict "secretRef" (dict "name" .)) -}}
{{- end -}}
{{- with $sources -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether Ray's node lives, and its agent with it: what KubeRay asks itself where a container has no probe. */}}
{{- define "preceptor.rayIsHealthy" -}}
exec:
  command:
    - /bin/bash
    - -c
    - >-
      wget --tries 1 -T 5 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success
{{- end -}}
