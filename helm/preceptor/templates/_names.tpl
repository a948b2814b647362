{{/* Names, labels, selectors. Selectors never name a version, and pod templates carry nothing that a release changes. */}}

{{- define "preceptor.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/* Name of every object. KubeRay adds suffixes to it, therefore 47 characters. */}}
{{- define "preceptor.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "preceptor.name" .) .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "preceptor.name" .) -}}
{{- end -}}
{{- end -}}

{{/* What tells the pods of this release from all others. */}}
{{- define "preceptor.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: {{ include "preceptor.name" . }}
{{- end -}}

{{/* Labels of the objects themselves. */}}
{{- define "preceptor.labels" -}}
app.kubernetes.io/name: {{ include "preceptor.name" . }}
{{ include "preceptor.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/*
Labels of the pods of one component. Without a version: a changed pod template makes KubeRay start a second cluster.
Without app.kubernetes.io/name on the head: KubeRay's own Service for the head selects on the name that it gives itself.
*/}}
{{- define "preceptor.podLabels" -}}
{{ include "preceptor.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- if ne .component "head" }}
app.kubernetes.io/name: {{ include "preceptor.name" .root }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Metadata of an object: the name of the release with a suffix, or a name of its own; labels and annotations besides ours.
Of two labels with one name that of the object itself counts.
*/}}
{{- define "preceptor.metadata" -}}
name: {{ .name | default (printf "%s%s" (include "preceptor.fullname" .root) (.suffix | default "")) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- merge (dict) (.labels | default dict) (.root.Values.commonLabels | default dict) (include "preceptor.labels" .root | fromYaml) | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "preceptor.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "preceptor.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- if $image.registry -}}{{- $name = printf "%s/%s" $image.registry $image.repository -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.tlsSecretName" -}}
{{- .Values.tls.existingSecret | default (ternary (printf "%s-tls" (include "preceptor.fullname" .)) "" .Values.tls.certManager.enabled) -}}
{{- end -}}
