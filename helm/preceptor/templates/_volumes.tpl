{{/* Volumes, and where they are mounted. */}}

{{/* Room to write on a read-only root. Takes the group. */}}
{{- define "preceptor.scratchVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .scratchSize | default "2Gi" }}
# By the name that KubeRay gives it, so that the autoscaler's container mounts the same.
- name: ray-logs
  emptyDir:
    sizeLimit: {{ .sessionSize | default "10Gi" }}
{{- end -}}

{{- define "preceptor.scratchMounts" -}}
- name: tmp
  mountPath: /var/tmp
- name: ray-logs
  mountPath: /var/tmp/ray
{{- end -}}

{{- define "preceptor.storeVolumes" -}}
{{- if include "preceptor.hasVolume" . }}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "preceptor.claimName" . }}
{{- else if include "preceptor.isRemote" . }}
# The service keeps it within config.weights.cache_bytes.
- name: cache
  emptyDir: {}
{{- end }}
{{- end -}}

{{- define "preceptor.storeMounts" -}}
{{- if include "preceptor.hasVolume" . }}
- name: store
  mountPath: {{ include "preceptor.weightsPath" . }}
{{- else if include "preceptor.isRemote" . }}
- name: cache
  mountPath: {{ include "preceptor.cachePath" . }}
{{- end }}
{{- end -}}

{{/* Certificates and the access file. As folders: a file mounted by subPath never changes, and rotation needs it to. */}}
{{- define "preceptor.credentialVolumes" -}}
{{- range $name, $secret := dict "tls" (include "preceptor.tlsSecretName" .) "client-ca" .Values.tls.clientCaSecret "probe" .Values.tls.probe.certificateSecret "auth" .Values.auth.existingSecret }}
{{- if $secret }}
- name: {{ $name }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- if .Values.auth.grants }}
- name: auth
  configMap:
    name: {{ include "preceptor.fullname" . }}-access
{{- end }}
{{- end -}}

{{- define "preceptor.credentialMounts" -}}
{{- range $name, $isMounted := dict "tls" (include "preceptor.tlsSecretName" .) "client-ca" .Values.tls.clientCaSecret "probe" .Values.tls.probe.certificateSecret "auth" (or .Values.auth.existingSecret .Values.auth.grants) }}
{{- if $isMounted }}
- name: {{ $name }}
  mountPath: /etc/preceptor/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{/* Tables of reference losses: gateways read them, a job of the operator's writes them. */}}
{{- define "preceptor.tableVolumes" -}}
{{- with .Values.referenceLosses.existingClaim }}
- name: tables
  persistentVolumeClaim:
    claimName: {{ . }}
    readOnly: true
{{- end }}
{{- end -}}

{{- define "preceptor.tableMounts" -}}
{{- if .Values.referenceLosses.existingClaim }}
- name: tables
  mountPath: {{ include "preceptor.tablesPath" . }}
  readOnly: true
{{- end }}
{{- end -}}
