{{/* Probes. Every worker has its own readiness probe: KubeRay's would ask Serve's HTTP proxy, which does not run. */}}

{{/* The name that the certificate bears. */}}
{{- define "preceptor.serverName" -}}
{{- tpl .Values.tls.probe.serverName . | default (printf "%s.%s.svc" (include "preceptor.fullname" .) .Release.Namespace) -}}
{{- end -}}

{{/*
Asks grpc.health.v1 as a trainer would, with TLS: Kubernetes' own gRPC probe speaks none. The address is the pod's own;
the name is what the certificate says.
*/}}
{{- define "preceptor.gatewayIsHealthy" -}}
exec:
  command:
    - preceptor
    - health
    - --target
    - 127.0.0.1:{{ include "preceptor.config.gatewayPort" . }}
    {{- if include "preceptor.hasTls" . }}
    - --tls
    {{- with .Values.tls.probe.authority }}
    - --tls-ca
    - {{ . }}
    {{- end }}
    - --tls-name
    - {{ include "preceptor.serverName" . }}
    {{- if .Values.tls.probe.certificateSecret }}
    - --tls-certificate
    - /etc/preceptor/probe/tls.crt
    - --tls-key
    - /etc/preceptor/probe/tls.key
    {{- end }}
    {{- end }}
{{- end -}}

{{- define "preceptor.gatewayProbes" -}}
{{- $probes := .Values.gateway.probes -}}
startupProbe:
  {{- include "preceptor.gatewayIsHealthy" . | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: {{ $probes.timeoutSeconds | int }}
  failureThreshold: {{ div (add $probes.startupSeconds 9) 10 }}
readinessProbe:
  {{- include "preceptor.gatewayIsHealthy" . | nindent 2 }}
  periodSeconds: {{ $probes.periodSeconds | int }}
  timeoutSeconds: {{ $probes.timeoutSeconds | int }}
  failureThreshold: 2
# Serve itself replaces a gateway that hangs, and one that gives way to another version is away for the length of its
# drain: only a pod that had no gateway for much longer starts anew.
livenessProbe:
  {{- include "preceptor.gatewayIsHealthy" . | nindent 2 }}
  periodSeconds: 30
  timeoutSeconds: {{ $probes.timeoutSeconds | int }}
  failureThreshold: {{ div (add (include "preceptor.config.drainSeconds" .) $probes.absenceSeconds 29) 30 }}
{{- end -}}

{{- define "preceptor.scorerProbes" -}}
readinessProbe:
  {{- include "preceptor.rayIsHealthy" . | nindent 2 }}
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
livenessProbe:
  {{- include "preceptor.rayIsHealthy" . | nindent 2 }}
  initialDelaySeconds: 30
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 12
{{- end -}}
